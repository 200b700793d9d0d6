"""The page of `qsjax ui`: a prompt, progress with previews, videos beside full precision, and a history.

`desk` is what the page does and `html` what it shows, both without Gradio; `page` puts them on a page, `launch` opens it.
"""
