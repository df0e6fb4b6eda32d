"""What the files of a model directory may say before a library reads them, and how they are opened."""
