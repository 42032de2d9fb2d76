/**
 * Gets what a report needs to be verified from a key distribution server, AMD's or another that speaks as it does. What comes back is believed in
 * nothing: `verifyReport` judges it with the roots that the caller has.
 */
import { AMD_KDS, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { chainPath, crlPath, vcekPath, vlekPath } from '../abi/kds-url.ts';
import { EvidenceError } from './evidence-error.ts';
import type { AttestationReport } from './report.ts';

/** The server answered with something else than what was asked for, or not at all. */
export class KdsError extends Error {
  override readonly name = 'KdsError';
  /** HTTP status; undefined: no answer. */
  readonly status: number | undefined;
  /** Seconds that the server wants us to wait. */
  readonly retryAfter: number | undefined;

  constructor(message: string, status?: number, retryAfter?: number) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
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

/** Files for `VerifyOptions`. */
export interface KdsEvidence {
  readonly certificates: Uint8Array[];
  readonly crls: Uint8Array[];
}

/** Largest answer that is read: AMD's are some 5 KiB. */
const MOST_BYTES = 1 << 20;

/** Certificates and revocation list for `report`. Throws KdsError, or EvidenceError where the report does not say what to ask for. */
export async function fetchEvidence(
  report: AttestationReport,
  options: KdsOptions = {},
): Promise<KdsEvidence> {
  const { signingKey, isChipIdMasked, reportedTcb, chipId } = report;
  if (signingKey !== 'VCEK' && signingKey !== 'VLEK') {
    throw new EvidenceError(
      `report.signing_key: got ${signingKey}, want VCEK or VLEK: no certificate belongs to it`,
    );
  }
  if (signingKey === 'VCEK' && isChipIdMasked) {
    throw new EvidenceError('report.chip_id: got zeros (masked), want the id that a VCEK is asked for with');
  }
  const product = report.product ?? options.product;
  const candidates = product === undefined ? PRODUCTS.filter((one) => one !== 'Turin') : [product];
  const endpoint = signingKey === 'VCEK' ? 'vcek' : 'vlek';
  for (const [index, candidate] of candidates.entries()) {
    const path =
      endpoint === 'vcek' ? vcekPath(candidate, chipId, reportedTcb) : vlekPath(candidate, reportedTcb);
    try {
      const leaf = await get(path, options);
      const [chain, crl] = await Promise.all([
        get(chainPath(endpoint, candidate), options),
        get(crlPath(endpoint, candidate), options),
      ]);
      return { certificates: [leaf, chain], crls: [crl] };
    } catch (error) {
      const isElsewhere = error instanceof KdsError && error.status === 404 && index + 1 < candidates.length;
      if (!isElsewhere) throw error;
    }
  }
  throw new EvidenceError('report: got no generation, want Milan, Genoa or Turin');
}

async function get(
  path: string,
  { url = AMD_KDS, timeoutMs = 10_000, fetch: send = fetch }: KdsOptions,
): Promise<Uint8Array> {
  const address = `${url.replace(/\/$/, '')}${path}`;
  let response: Response;
  try {
    response = await send(address, { signal: AbortSignal.timeout(timeoutMs), redirect: 'error' });
  } catch (error) {
    const { cause, message } = error as Error;
    throw new KdsError(
      `${address}: no answer (${cause instanceof Error && cause.message !== '' ? cause.message : message})`,
    );
  }
  if (response.status !== 200) {
    const seconds = Number(response.headers.get('retry-after') ?? Number.NaN);
    const retryAfter = Number.isFinite(seconds) ? seconds : undefined;
    const wait = retryAfter === undefined ? '' : `, wait ${retryAfter} s`;
    throw new KdsError(
      `${address}: got status ${response.status}${wait}, want 200`,
      response.status,
      retryAfter,
    );
  }
  const bytes = new Uint8Array(
    await response.arrayBuffer().catch((error: Error) => {
      throw new KdsError(`${address}: got a part of an answer (${error.message})`, 200);
    }),
  );
  if (bytes.length === 0 || bytes.length > MOST_BYTES) {
    throw new KdsError(`${address}: got ${bytes.length} bytes, want 1 to ${MOST_BYTES}`, 200);
  }
  return bytes;
}
