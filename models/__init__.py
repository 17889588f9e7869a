"""The models to release, one module per family. docs/add-your-model.md shows how to add yours."""
