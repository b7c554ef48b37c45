"""A bot with nothing but a ZeroMQ binding and a JSON library: bot_json.py [ENDPOINT] [PROMPT]."""

import json
import os
import sys
import time

import zmq

endpoint = sys.argv[1] if len(sys.argv) > 1 else os.environ["SIDECAR_ENDPOINT"]
prompt = sys.argv[2] if len(sys.argv) > 2 else "BUY, SELL or HOLD?"
bot = zmq.Context().socket(zmq.DEALER)
bot.setsockopt(zmq.IMMEDIATE, 1)  # nothing is kept to run late
bot.setsockopt(zmq.LINGER, 0)
bot.setsockopt(zmq.SNDTIMEO, 1000)
bot.connect(endpoint)
call = {"type": "call", "id": "1", "input": prompt, "timeout_ms": 5000, "sent_mono_us": time.monotonic_ns() // 1000}
bot.send(json.dumps(call).encode())
while bot.poll(6000):  # a timer of our own, beyond the deadline
    message = json.loads(bot.recv())
    if message["type"] == "delta":
        print(message["text"], end="", flush=True)
    elif message["type"] in ("done", "failed"):
        print("", message.get("finish") or message["code"], file=sys.stderr)
        sys.exit(message.get("finish") != "stop")
sys.exit("the daemon is silent")
