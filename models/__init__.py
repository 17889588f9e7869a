"""What to release: one file a family of models. Yours go here, too; docs/add-your-model.md shows how."""
