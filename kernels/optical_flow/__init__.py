"""Dense optical flow of cines: one operation in several files; `operation.py` has oracle and public function."""

from .operation import optical_flow, optical_flow_bytes, optical_flow_ref
from .params import FlowParams

__all__ = ["FlowParams", "optical_flow", "optical_flow_bytes", "optical_flow_ref"]
