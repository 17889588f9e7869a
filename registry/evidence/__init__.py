"""Code that stages and registry share: typed reports, their parts, and measures of similarity."""
