"""What is packaged: extras, versions."""
