"""Whole models: training steps of fastdl against native torch, and where their time goes."""
