"""The viewer: reads runs, writes nothing. `launch.view` opens it; `app` is the page, the other modules know no Streamlit."""
