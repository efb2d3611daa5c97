"""The viewer: reads runs, writes nothing under them. `launch` opens it, `app` navigates, `pages` are what is shown."""
