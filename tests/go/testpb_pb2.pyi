from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TestMessage(_message.Message):
    __slots__ = ("name", "city")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    city: str
    def __init__(self, name: _Optional[str] = ..., city: _Optional[str] = ...) -> None: ...

class TestRequest(_message.Message):
    __slots__ = ("lower", "repeat_count")
    LOWER_FIELD_NUMBER: _ClassVar[int]
    REPEAT_COUNT_FIELD_NUMBER: _ClassVar[int]
    lower: str
    repeat_count: int
    def __init__(self, lower: _Optional[str] = ..., repeat_count: _Optional[int] = ...) -> None: ...

class TestResponse(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: str
    def __init__(self, value: _Optional[str] = ...) -> None: ...

class CacheStats(_message.Message):
    __slots__ = ("items", "bytes", "gets", "hits", "evicts")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    GETS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    EVICTS_FIELD_NUMBER: _ClassVar[int]
    items: int
    bytes: int
    gets: int
    hits: int
    evicts: int
    def __init__(self, items: _Optional[int] = ..., bytes: _Optional[int] = ..., gets: _Optional[int] = ..., hits: _Optional[int] = ..., evicts: _Optional[int] = ...) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("gets", "cache_hits", "fills", "total_alloc", "main_cache", "hot_cache", "server_in", "loads", "peer_loads", "peer_errors", "local_loads")
    GETS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    FILLS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_ALLOC_FIELD_NUMBER: _ClassVar[int]
    MAIN_CACHE_FIELD_NUMBER: _ClassVar[int]
    HOT_CACHE_FIELD_NUMBER: _ClassVar[int]
    SERVER_IN_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    PEER_LOADS_FIELD_NUMBER: _ClassVar[int]
    PEER_ERRORS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_LOADS_FIELD_NUMBER: _ClassVar[int]
    gets: int
    cache_hits: int
    fills: int
    total_alloc: int
    main_cache: CacheStats
    hot_cache: CacheStats
    server_in: int
    loads: int
    peer_loads: int
    peer_errors: int
    local_loads: int
    def __init__(self, gets: _Optional[int] = ..., cache_hits: _Optional[int] = ..., fills: _Optional[int] = ..., total_alloc: _Optional[int] = ..., main_cache: _Optional[_Union[CacheStats, _Mapping]] = ..., hot_cache: _Optional[_Union[CacheStats, _Mapping]] = ..., server_in: _Optional[int] = ..., loads: _Optional[int] = ..., peer_loads: _Optional[int] = ..., peer_errors: _Optional[int] = ..., local_loads: _Optional[int] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
