"""The viewer: reads runs, writes nothing. `launch` opens it, `app` is the page, the others know no Streamlit."""
