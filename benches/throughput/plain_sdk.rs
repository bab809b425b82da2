//! What anybody would write first: a multipart upload with the AWS SDK's
//! defaults, in the clear. This program again, so that it is a process of its
//! own.

use std::path::Path;
use std::process::Command;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_smithy_http_client::tls;
use tokio::io::AsyncReadExt as _;

/// Asks this program to be it.
pub const ROLE: &str = "--plain-sdk";
/// Part size, in bytes: ours and the AWS command line's.
const PART: u64 = 8 << 20;
/// Parts in flight: the AWS command line's `max_concurrent_requests`.
const IN_FLIGHT: usize = 10;
const KEY: &str = "plain-sdk";

/// The command that uploads `file` to `bucket`.
pub fn command(endpoint: &str, authority: &Path, bucket: &str, file: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(ROLE).arg(endpoint).arg(authority);
    command.arg(bucket).arg(file);
    command
}

/// The process.
pub fn upload() {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let [endpoint, authority, bucket, file] = &args[..] else {
        panic!("{args:?}");
    };
    let client = client(endpoint, Path::new(authority));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let begun = client.create_multipart_upload().bucket(bucket).key(KEY);
        let id = begun.send().await.unwrap().upload_id.unwrap();
        let parts = parts(&client, bucket, &id, Path::new(file)).await;
        client
            .complete_multipart_upload()
            .bucket(bucket)
            .key(KEY)
            .upload_id(&id)
            .multipart_upload(
                CompletedMultipartUpload::builder()
                    .set_parts(Some(parts))
                    .build(),
            )
            .send()
            .await
            .unwrap();
    });
}

/// Sends the file's parts, several at once.
async fn parts(client: &Client, bucket: &str, id: &str, file: &Path) -> Vec<CompletedPart> {
    let mut file = tokio::fs::File::open(file).await.unwrap();
    let (mut parts, mut sending) = (Vec::new(), tokio::task::JoinSet::new());
    for number in 1.. {
        let mut buffer = Vec::with_capacity(PART.try_into().unwrap());
        let read = (&mut file).take(PART).read_to_end(&mut buffer).await;
        if read.unwrap() == 0 {
            break;
        }
        if sending.len() == IN_FLIGHT {
            parts.push(sending.join_next().await.unwrap().unwrap());
        }
        let sent = client
            .upload_part()
            .bucket(bucket)
            .key(KEY)
            .upload_id(id)
            .part_number(number)
            .body(ByteStream::from(buffer))
            .send();
        sending.spawn(async move {
            let part = CompletedPart::builder().part_number(number);
            part.e_tag(sent.await.unwrap().e_tag.unwrap()).build()
        });
    }
    parts.extend(sending.join_all().await);
    parts.sort_by_key(CompletedPart::part_number);
    parts
}

fn client(endpoint: &str, authority: &Path) -> Client {
    let http = aws_smithy_http_client::Builder::new();
    let http = if endpoint.starts_with("https") {
        let trust =
            tls::TrustStore::empty().with_pem_certificate(std::fs::read(authority).unwrap());
        let context = tls::TlsContext::builder().with_trust_store(trust).build();
        http.tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::AwsLc,
        ))
        .tls_context(context.unwrap())
        .build_https()
    } else {
        http.build_http()
    };
    let credentials = Credentials::new("test-access-key", "secret", None, None, "bench");
    Client::from_conf(
        aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .force_path_style(true)
            .credentials_provider(credentials)
            .http_client(http)
            .build(),
    )
}
