// The stock JavaScript AWS Encryption SDK with a raw AES key, on files.
//
// usage: esdk.mjs decrypt NAMESPACE NAME KEYFILE MESSAGE PLAINTEXT
//        esdk.mjs encrypt NAMESPACE NAME KEYFILE PLAINTEXT MESSAGE CONTEXT-JSON FRAME-LENGTH
//
// Prints the message's encryption context as JSON. STRONGROOM_NODE_MODULES is
// where the SDK is installed.

import { createReadStream, createWriteStream, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { pipeline } from 'node:stream/promises'

const require = createRequire(`${process.env.STRONGROOM_NODE_MODULES}/`)
const { buildClient, AlgorithmSuiteIdentifier, CommitmentPolicy } = require('@aws-crypto/client-node')
const { RawAesKeyringNode, RawAesWrappingSuiteIdentifier } = require('@aws-crypto/raw-aes-keyring-node')

const [operation, keyNamespace, keyName, keyFile, source, target, context, frameLength] =
  process.argv.slice(2)
const { encryptStream, decryptUnsignedMessageStream } = buildClient(
  CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
)
const keyring = new RawAesKeyringNode({
  keyNamespace,
  keyName,
  // The SDK wants the key isolated in a buffer of its own.
  unencryptedMasterKey: Uint8Array.from(readFileSync(keyFile)),
  wrappingSuite: RawAesWrappingSuiteIdentifier.AES256_GCM_IV12_TAG16_NO_PADDING,
})

const stream =
  operation === 'encrypt'
    ? encryptStream(keyring, {
        suiteId: AlgorithmSuiteIdentifier.ALG_AES256_GCM_IV12_TAG16_HKDF_SHA512_COMMIT_KEY,
        encryptionContext: JSON.parse(context),
        frameLength: Number(frameLength),
      })
    : decryptUnsignedMessageStream(keyring)
stream.on('MessageHeader', (header) => console.log(JSON.stringify(header.encryptionContext)))
await pipeline(createReadStream(source), stream, createWriteStream(target))
