"""The client's side of OpenAI's API: connections, framing, and what an answer said. Measures; judges nothing.

Knows no engine, no deployment and no load: the probe of a service and the load test both stand on it, so that
neither is stricter than the other.
"""
