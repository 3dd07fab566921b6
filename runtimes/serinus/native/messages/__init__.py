"""What protobuf messages hold, before they are parsed."""
