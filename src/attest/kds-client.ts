/**
 * Gets what a report needs to be verified from a key distribution server, AMD's or another that speaks as it does. What comes back is believed in
 * nothing: `verifyReport` judges it with the roots that the caller has.
 */
import { AMD_KDS, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { chainPath, crlPath, vcekPath, vlekPath } from '../abi/kds-url.ts';
import {
  requireInteger,
  requireKind,
  requireKnownFields,
  requireOneOf,
  requireText,
  textOf,
} from '../base/option-checks.ts';
import { readCertificates } from './certificate.ts';
import { parseCrl } from './crl.ts';
import { Deadline } from './deadline.ts';
import { EvidenceError } from './evidence-error.ts';
import { type AttestationReport, requireReport } from './report.ts';

/** The server answered with something else than what was asked for, or not at all. */
export class KdsError extends Error {
  override readonly name = 'KdsError';
  /** HTTP status; undefined: no answer. */
  readonly status: number | undefined;
  /** Seconds that the server wants us to wait. */
  readonly retryAfter: number | undefined;
  /** Products for which the server has no certificate of the report's, which does not say its own; empty: it was not for want of that. */
  readonly triedProducts: readonly Product[];

  constructor(message: string, status?: number, retryAfter?: number, triedProducts: readonly Product[] = []) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.triedProducts = triedProducts;
  }
}

export interface KdsOptions {
  /** Default: AMD's. */
  readonly url?: string;
  /** For a report of version 2, which does not say its generation. */
  readonly product?: Product;
  /** Milliseconds for one request; default 10 s. */
  readonly timeoutMs?: number;
  /** Default: the platform's. */
  readonly fetch?: typeof fetch;
}

const OPTIONS: Record<keyof KdsOptions, true> = { url: true, product: true, timeoutMs: true, fetch: true };

/** Files for `VerifyOptions`. */
export interface KdsEvidence {
  readonly certificates: Uint8Array[];
  readonly crls: Uint8Array[];
}

const TIMEOUT_MS = 10_000;
/** What a timer takes. */
const LONGEST_MS = 2 ** 31 - 1;

/** Largest answer that is read: AMD's are some 5 KiB. */
const MOST_BYTES = 1 << 20;

/**
 * Certificates and revocation list for `report`. Throws KdsError, EvidenceError where the report does not say what to ask for, or RangeError for an option that cannot be what it is.
 */
export async function fetchEvidence(
  report: AttestationReport,
  options: KdsOptions = {},
): Promise<KdsEvidence> {
  requireKnownFields('options', options, OPTIONS);
  requireReport(report);
  const { signingKey, isChipIdMasked } = report;
  const { url = AMD_KDS, product: expected, timeoutMs = TIMEOUT_MS } = options;
  if (expected !== undefined) requireOneOf('product', expected, PRODUCTS);
  requireInteger('timeoutMs', timeoutMs, 0, LONGEST_MS);
  requireKind('fetch', options.fetch, (value) => typeof value === 'function', 'a function');
  requireText('url', url);
  if (!/^https?:$/.test(protocolOf(url))) {
    throw new RangeError(`url: got ${url}, want an address such as ${AMD_KDS}`);
  }
  if (signingKey !== 'VCEK' && signingKey !== 'VLEK') {
    throw new EvidenceError(
      `report.signing_key: got ${signingKey}, want VCEK or VLEK: no certificate belongs to it`,
    );
  }
  if (signingKey === 'VCEK' && isChipIdMasked) {
    throw new EvidenceError('report.chip_id: got zeros (masked), want the id that a VCEK is asked for with');
  }
  const endpoint = signingKey === 'VCEK' ? 'vcek' : 'vlek';
  const { leaf, product } = await fetchLeaf(report, endpoint, options);
  const deadlines = [new Deadline(timeoutMs), new Deadline(timeoutMs)] as const;
  try {
    const [chain, crl] = await Promise.all([
      get(chainPath(endpoint, product), readCertificates, options, deadlines[0]),
      get(crlPath(endpoint, product), parseCrl, options, deadlines[1]),
    ]);
    return { certificates: [leaf, chain], crls: [crl] };
  } finally {
    for (const deadline of deadlines) deadline.end();
  }
}

/** The VCEK or VLEK. Where the report does not say its product, Milan and then Genoa: Turin's reports do. */
async function fetchLeaf(
  report: AttestationReport,
  endpoint: 'vcek' | 'vlek',
  options: KdsOptions,
): Promise<{ leaf: Uint8Array; product: Product }> {
  const known = report.product ?? options.product;
  const candidates = known === undefined ? PRODUCTS.filter((one) => one !== 'Turin') : [known];
  for (const product of candidates) {
    const path =
      endpoint === 'vcek'
        ? vcekPath(product, report.chipId, report.reportedTcb)
        : vlekPath(product, report.reportedTcb);
    try {
      return { leaf: await get(path, readCertificates, options), product };
    } catch (error) {
      if (known !== undefined || !(error instanceof KdsError) || error.status !== 404) throw error;
    }
  }
  throw new KdsError(
    `${(options.url ?? AMD_KDS).replace(/\/$/, '')}/${endpoint}: got status 404 for ${candidates.join(' and ')}, want 200; a report of version ${report.version} does not say its product`,
    404,
    undefined,
    candidates,
  );
}

/** Empty: no URL. */
function protocolOf(text: string): string {
  try {
    return new URL(text).protocol;
  } catch {
    return '';
  }
}

/** An answer's bytes, if `read` can read them, and they come before `deadline`, which ends with it. */
async function get(
  path: string,
  read: (bytes: Uint8Array, name: string) => unknown,
  { url = AMD_KDS, timeoutMs = TIMEOUT_MS, fetch: send = fetch }: KdsOptions,
  deadline = new Deadline(timeoutMs),
): Promise<Uint8Array> {
  const address = `${url.replace(/\/$/, '')}${path}`;
  try {
    const response = await ask(address, send, deadline);
    const bytes = await bodyOf(response, address, deadline);
    try {
      read(bytes, 'answer');
    } catch (error) {
      const type = response.headers.get('content-type') ?? 'no content type';
      throw new KdsError(
        `${address}: got ${bytes.length} bytes of ${type}, want certificates or a revocation list (${(error as Error).message})`,
        200,
      );
    }
    return bytes;
  } finally {
    deadline.end();
  }
}

/** The beginning of an answer with status 200. */
async function ask(address: string, send: typeof fetch, deadline: Deadline): Promise<Response> {
  let response: Response;
  try {
    response = await deadline.of(send(address, { signal: deadline.signal, redirect: 'error' }));
  } catch (error) {
    throw new KdsError(`${address}: no answer (${reasonOf(error)})`);
  }
  if (typeof response?.status !== 'number' || typeof response.headers?.get !== 'function')
    throw new RangeError(
      `fetch: got a function that resolves to ${textOf(response)}, want one that resolves to a Response`,
    );
  if (response.status === 200) return response;
  leave(response.body);
  const seconds = Number(response.headers.get('retry-after') ?? Number.NaN);
  const retryAfter = Number.isFinite(seconds) ? seconds : undefined;
  const wait = retryAfter === undefined ? '' : `, wait ${retryAfter} s`;
  throw new KdsError(
    `${address}: got status ${response.status}${wait}, want 200`,
    response.status,
    retryAfter,
  );
}

/** Takes no more of an answer: its connection would stay for as long as the server likes. */
function leave(body: { cancel(): Promise<void> } | null | undefined): void {
  body?.cancel().catch(() => undefined);
}

/** The answer's body. No more is taken of one that is too long than shows that it is. */
async function bodyOf(response: Response, address: string, deadline: Deadline): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let length = 0;
  const reader = response.body?.getReader();
  try {
    while (reader !== undefined && length <= MOST_BYTES) {
      const { done, value } = await deadline.of(reader.read());
      if (done) break;
      parts.push(value);
      length += value.length;
    }
  } catch (error) {
    throw new KdsError(`${address}: got a part of an answer (${reasonOf(error)})`, 200);
  } finally {
    leave(reader);
  }
  if (length === 0 || length > MOST_BYTES) {
    const got = length === 0 ? 'nothing' : `more than ${MOST_BYTES} bytes`;
    throw new KdsError(`${address}: got ${got}, want 1 to ${MOST_BYTES} bytes`, 200);
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** What the platform's fetch says of a failure often stands in its cause alone. */
function reasonOf(error: unknown): string {
  const { cause, message } = error as Error;
  return cause instanceof Error && cause.message !== '' ? cause.message : message;
}
