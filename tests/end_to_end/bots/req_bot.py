import os, sys, zmq  # noqa: E401, I001 - a bot of six lines

bot = zmq.Context().socket(zmq.REQ)
bot.linger, bot.rcvtimeo = 0, 6000
bot.connect(sys.argv[1] if len(sys.argv) > 1 else os.environ["SIDECAR_ENDPOINT"])
bot.send_json({"type": "call", "id": "1", "input": "BUY, SELL or HOLD?", "stream": False, "timeout_ms": 5000})
print(bot.recv_json()["text"])
