"""An OpenAI-compatible server around an engine.

    import uvicorn
    from nlrl.backbones.engine.server.app import create_app
    uvicorn.run(create_app(engine), host="127.0.0.1", port=8000)

1. `guard` checks the key and the size of a request before anything reads it, and counts what came of it.
2. `wire` turns the JSON of a request into an `Ask`: prompts in tokens, one `Sampling`, seeds.
3. `tickets` submits an ask to the engine and brings answers to the event loop. A client that hangs up cancels them.
4. `answers` turns completions into JSON, `stream` into server-sent events; both write the same pieces.
5. `errors` puts every refusal into OpenAI's error format, with the field named.
"""
