"""What stages and registry share: typed reports, the terms they use, and measures of similarity."""
