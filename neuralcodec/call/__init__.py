"""`neuralcodec call`: a page in the browser that shows the codec at work on one's own camera. Extra: ``[webrtc]``.

    camera -> browser -> WebRTC -> pipeline: encoder -> link (loss, delay, bandwidth) -> decoder -> WebRTC -> browser

``link`` and ``settings`` are pure, ``pipeline`` has the threads and knows no web, ``server`` has the web and knows no
codec, ``web/`` is the page: plain files, no build step, nothing fetched from elsewhere.
"""
