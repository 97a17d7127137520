"""How an engine tells gateways its load by itself, without an agent: 30 lines, no packages. Copy the class into the
engine and call `send` 20 times a second. The format is specified in src/wire/beacon.rs.

    python3 beacon.py GATEWAY_HOST:PORT REPLICA_URL [KEY_FILE]        sends three beacons as a trial
"""
import hashlib, hmac, socket, struct, sys, time
from urllib.parse import urlsplit

READY, DRAINING, KV_USAGE = 1, 2, 4  # bits; the other fields that may be unknown are left so


class Beacons:
    def __init__(self, gateway, url, key_id=0, secret=b"", period_s=0.05):
        host, _, port = gateway.rpartition(":")
        family, kind, _, _, self.address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        self.socket = socket.socket(family, kind)
        self.key_id, self.secret, self.period_us = key_id, secret, int(period_s * 1e6)
        replica_id = urlsplit(url).netloc.lower()  # or the id that the gateway's configuration gives this replica
        self.sender = hashlib.sha256(replica_id.encode()).digest()[:8]
        self.incarnation = self.sequence = time.time_ns() // 1000  # this process is the engine: both start now
        self.facts = struct.pack("<HH", 1, len(url)) + url.encode()

    def send(self, running, waiting, kv_usage, ready=True, draining=False, cache_resets=0):
        bits = READY * ready | DRAINING * draining | KV_USAGE
        length = 104 + len(self.facts) + 16
        head = struct.pack("<4sBBHII8sQQQ", b"EMBL", 1, 0, length, self.key_id, bits, self.sender, self.incarnation,
                           self.sequence, time.time_ns())
        load = struct.pack("<8I3Q", self.period_us, running, waiting, round(kv_usage * 1e6), 0, 0, 0, cache_resets,
                           0, 0, 0)
        signed = head + load + self.facts
        mac = hmac.new(self.secret, signed, hashlib.sha256).digest()[:16] if self.key_id else bytes(16)
        self.socket.sendto(signed + mac, self.address)
        self.sequence += 1


if __name__ == "__main__":
    key_id, secret = 0, b""
    if len(sys.argv) > 3:
        lines = [line.strip() for line in open(sys.argv[3])]
        first = next(line for line in lines if line and not line.startswith("#"))
        key_id, secret = int(first.split(":")[0]), bytes.fromhex(first.split(":")[1])
    beacons = Beacons(sys.argv[1], sys.argv[2], key_id, secret)
    for running in range(3):
        beacons.send(running=running, waiting=0, kv_usage=0.25)
        time.sleep(0.05)
