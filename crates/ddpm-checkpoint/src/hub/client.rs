//! The Hub's routes: what a repository holds, and one of its files, with its hash and size, whole or from a byte on.
//!
//! hf-hub speaks them too, but believes the server: it names files by an unchecked `etag`, appends a whole body to a part
//! where a server knows no ranges, and panics where a redirect lacks its address.

use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::http::Response;
use ureq::{Body, config::RedirectAuthHeaders};

use super::is_hash;

/// A server and who asks it.
pub(super) struct Client {
    endpoint: String,
    token: Option<String>,
    /// Follows redirects, without the token to other servers.
    agent: Agent,
    /// Follows none: the answer of the Hub itself tells the hash.
    direct: Agent,
}

/// Why there is no answer.
pub(super) enum Failure {
    /// The server cannot be reached, or stumbled: another try may help.
    Perhaps(String),
    /// It answered, and what it said will not change.
    ForGood(String),
}

/// What a repository holds at a revision.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    /// The commit.
    pub(super) sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    pub(super) fn has(&self, file: &str) -> bool {
        self.siblings
            .iter()
            .any(|sibling| sibling.rfilename == file)
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.siblings
            .iter()
            .map(|sibling| sibling.rfilename.as_str())
    }
}

/// What the Hub says of a file.
#[derive(Debug)]
pub(super) struct Announced {
    /// SHA-256 (64 digits) of a large file, git's hash (40) of a small one.
    pub(super) hash: String,
    pub(super) size: u64,
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>) -> Self {
        let agent = |redirects: u32| {
            let config = Agent::config_builder()
                .max_redirects(redirects)
                .max_redirects_will_error(false)
                .http_status_as_error(false)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .timeout_connect(Some(Duration::from_secs(20)))
                .timeout_recv_response(Some(Duration::from_secs(60)));
            Agent::new_with_config(config.build())
        };
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            agent: agent(10),
            direct: agent(0),
        }
    }

    /// The files of a repository.
    pub(super) fn listing(&self, repository: &str, revision: &str) -> Result<Listing, Failure> {
        let revision = revision.replace('/', "%2F");
        let url = format!(
            "{}/api/models/{repository}/revision/{revision}",
            self.endpoint
        );
        let mut response = self.get(&self.agent, &url, None)?;
        let listing = response
            .body_mut()
            .with_config()
            .limit(LARGEST_LISTING)
            .read_json();
        let listing: Listing = listing.map_err(|error| {
            Failure::ForGood(format!("{url} answers what is no listing: {error}"))
        })?;
        match is_hash(&listing.sha) {
            true => Ok(listing),
            false => Err(Failure::ForGood(format!(
                "{url} names the commit `{}`",
                listing.sha
            ))),
        }
    }

    pub(super) fn url(&self, repository: &str, revision: &str, file: &str) -> String {
        let revision = revision.replace('/', "%2F");
        format!("{}/{repository}/resolve/{revision}/{file}", self.endpoint)
    }

    /// Hash and size of a file: by its first byte, as servers differ in what they say to HEAD.
    pub(super) fn announced(&self, url: &str) -> Result<Announced, Failure> {
        let mut url = url.to_owned();
        for _ in 0..5 {
            let response = self.get(&self.direct, &url, Some((0, Some(0))))?;
            let header = |name: &str| {
                response
                    .headers()
                    .get(name)
                    .and_then(|value| value.to_str().ok())
            };
            // A renamed repository leads on within the server; a large file leads to another one.
            let location = header("location").filter(|_| response.status().is_redirection());
            if let Some(path) = location.filter(|to| to.starts_with('/') && !to.starts_with("//")) {
                url = format!("{}{path}", self.endpoint);
                continue;
            }
            let tag = header("x-linked-etag").or(header("etag"));
            let hash = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
            let size = header("x-linked-size")
                .or(header("content-range").and_then(|range| range.rsplit('/').next()))
                .or(header("content-length").filter(|_| response.status() == 200))
                .and_then(|size| size.parse().ok());
            return match (hash.filter(|hash| is_hash(hash) && hash.len() >= 40), size) {
                (Some(hash), Some(size)) => Ok(Announced {
                    hash: hash.to_ascii_lowercase(),
                    size,
                }),
                (None, _) => Err(Failure::ForGood(format!(
                    "{url} does not tell the file's hash (etag)"
                ))),
                (_, None) => self.size(&url).map(|size| Announced {
                    hash: hash.unwrap_or_default().to_ascii_lowercase(),
                    size,
                }),
            };
        }
        Err(Failure::ForGood(format!("{url} leads round and round")))
    }

    /// The size that the server says to which a large file leads.
    fn size(&self, url: &str) -> Result<u64, Failure> {
        let response = self.get(&self.agent, url, Some((0, Some(0))))?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let range = header("content-range").and_then(|range| range.rsplit('/').next());
        let whole = header("content-length").filter(|_| response.status() == 200);
        let size = range.or(whole).and_then(|size| size.parse().ok());
        size.ok_or_else(|| Failure::ForGood(format!("{url} does not tell the file's size")))
    }

    /// A file from a byte on; whether the answer begins there, or at the beginning.
    pub(super) fn content(&self, url: &str, from: u64) -> Result<(Response<Body>, bool), Failure> {
        let range = (from > 0).then_some((from, None));
        let response = self.get(&self.agent, url, range)?;
        let continued = from > 0 && response.status() == 206;
        Ok((response, continued))
    }

    fn get(
        &self,
        agent: &Agent,
        url: &str,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = agent
            .get(url)
            .header("user-agent", concat!("ddpm/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some((from, to)) = range {
            let to = to.map(|to| to.to_string()).unwrap_or_default();
            request = request.header("range", format!("bytes={from}-{to}"));
        }
        let response = request
            .call()
            .map_err(|error| Failure::Perhaps(format!("{url}: {error}")))?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        Err(match status.as_u16() {
            404 => Failure::ForGood(format!(
                "{url} answers 404: there is no such model, revision or file"
            )),
            code @ (401 | 403) => Failure::ForGood(format!(
                "{url} answers {code}: there is no such model, or it is not public; HF_TOKEN is {}",
                if self.token.is_some() {
                    "not one that may read it"
                } else {
                    "not set"
                }
            )),
            code @ (429 | 500..) => Failure::Perhaps(format!("{url} answers {code}")),
            code => Failure::ForGood(format!("{url} answers {code}")),
        })
    }
}

/// Bytes of a list of files.
const LARGEST_LISTING: u64 = 16 << 20;
