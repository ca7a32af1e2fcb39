from tests.support.stored import store

__all__ = ["store"]
