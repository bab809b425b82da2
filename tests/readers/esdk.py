"""The stock Python AWS Encryption SDK with a raw AES key, on files.

usage: esdk.py decrypt NAMESPACE NAME KEYFILE MESSAGE PLAINTEXT
       esdk.py encrypt NAMESPACE NAME KEYFILE PLAINTEXT MESSAGE CONTEXT-JSON FRAME-LENGTH

Prints the message's encryption context as JSON.
"""

import json
import shutil
import sys

import aws_encryption_sdk
from aws_encryption_sdk.identifiers import (
    AlgorithmSuite,
    CommitmentPolicy,
    EncryptionKeyType,
    WrappingAlgorithm,
)
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKey

operation, namespace, name, key_file, source, target, *more = sys.argv[1:]
with open(key_file, "rb") as file:
    wrapping_key = WrappingKey(
        wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
        wrapping_key=file.read(),
        wrapping_key_type=EncryptionKeyType.SYMMETRIC,
    )
provider = RawMasterKey(provider_id=namespace, key_id=name, wrapping_key=wrapping_key)
client = aws_encryption_sdk.EncryptionSDKClient(
    commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
)
settings = {"mode": operation, "key_provider": provider}
if operation == "encrypt":
    context, frame_length = more
    settings |= {
        "algorithm": AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
        "encryption_context": json.loads(context),
        "frame_length": int(frame_length),
    }
with open(source, "rb") as input_file, open(target, "wb") as output_file:
    with client.stream(source=input_file, **settings) as stream:
        shutil.copyfileobj(stream, output_file, 1 << 20)
        print(json.dumps(stream.header.encryption_context))
