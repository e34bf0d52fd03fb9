"""What tests share: servers, brokers and proxies that they start, acts that they play, and what they ask of the database."""
