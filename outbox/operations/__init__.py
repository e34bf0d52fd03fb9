"""What a person asks about workflows, and does to them."""
