"""Worker processes that run models, and the client that communicates with them."""
