"""teacher-gateway: one gRPC logprobs API over every teacher."""
