"""The site of the documentation: links, generated pages, pictures, notebooks."""
