"""Whether rows of several requests may be predicted together: asked, checked, kept."""
