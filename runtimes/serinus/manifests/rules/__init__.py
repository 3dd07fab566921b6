"""What is refused, and what is accepted and does not do what it says: one function a rule, by kind of object."""
