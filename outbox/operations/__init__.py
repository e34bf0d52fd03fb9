"""What a person looks up about workflows, and does to them."""
