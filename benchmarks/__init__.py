"""fastdl against native torch, case by case.

    python -m benchmarks                        every op, a few minutes
    python -m benchmarks --op softmax adam      some ops
    python -m benchmarks --full --compile       all shapes, torch.compile as a further candidate
    python -m benchmarks --models               whole models, with a breakdown by op
    python -m benchmarks --device cuda          the cases for GPUs
    pytest benchmarks                           the same cases under pytest-benchmark

Every run starts with the machine, its measured limits and the state of the allocator.
"""
