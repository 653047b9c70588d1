"""Files that no test thought of: `python -m fuzz` changes good ones, and looks for what the package says of them."""
