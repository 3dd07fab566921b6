"""What is to be served: model directories, formats, versions, names of classes, scripts."""
