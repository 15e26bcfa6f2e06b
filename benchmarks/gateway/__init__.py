"""What the teacher-gateway costs and saves, beside a vLLM asked directly and LiteLLM's proxy with its Redis cache."""
