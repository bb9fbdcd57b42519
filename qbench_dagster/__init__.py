"""TestRail test cases and their embeddings, brought into one PostgreSQL with pgvector."""
