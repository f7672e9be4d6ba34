"""The model as a service: studies in over HTTP, results out, and a reading list in the browser."""
