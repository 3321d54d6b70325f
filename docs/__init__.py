"""What is generated into the documents."""
