"""gRPC: the Open Inference Protocol, health and reflection, on grpcio or on a native HTTP/2 front."""

from .grpc_server import GrpcServer, start_grpc

__all__ = ["GrpcServer", "start_grpc"]
