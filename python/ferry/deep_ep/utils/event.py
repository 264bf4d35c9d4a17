# By its full name: under sys.modules["deep_ep"] this file is loaded a second time, and there must be one EventHandle.
from ferry.deep_ep._event import EventHandle, EventOverlap

__all__ = ["EventHandle", "EventOverlap"]
