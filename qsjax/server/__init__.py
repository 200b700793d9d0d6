"""`qsjax serve`: videos by HTTP, with the endpoints and field names of OpenAI's Videos API as vLLM-Omni has them.

`asked` reads requests, `told` writes answers, `guard` turns strangers away, `app` joins them, `launch` listens.
"""
