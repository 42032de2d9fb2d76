/**
 * The launch digest of an SNP guest (AMD 56860, SNP_LAUNCH_UPDATE, PAGE_INFO): each page that the host adds makes a new digest of the one before
 * it. Here as a relying party computes it; the firmware's own is in hardware/asp, and a test compares the two.
 */
import { toHex } from '../base/hex.ts';
import {
  requireArray,
  requireBytes,
  requireKind,
  requireKnownFields,
  requireOneOf,
  requireText,
  textOf,
} from '../base/option-checks.ts';
import { unshared } from './bytes.ts';

const PAGE = 4096;
const DIGEST_BYTES = 48;
const PAGE_INFO_BYTES = 0x70;

/** PAGE_TYPE of SNP_LAUNCH_UPDATE. */
export const PAGE_TYPE = { normal: 1, vmsa: 2, zero: 3, unmeasured: 4, secrets: 5, cpuid: 6 } as const;
export type PageType = keyof typeof PAGE_TYPE;

/** What firmware takes for the address of a VMSA page. */
export const VMSA_GPA = 0xffff_ffff_f000;

/** TSC scale and offset of a VMSA count as zero. */
const VMSA_TSC = [0x2f0, 0x300] as const;

/** Pages that a host adds in one step. */
export interface LaunchUpdate {
  readonly type: PageType;
  readonly gpa: number;
  /** Bytes, whole pages. */
  readonly size: number;
  /** What lies in `normal` and `vmsa` pages. */
  readonly bytes?: Uint8Array;
  /** What the pages are for. */
  readonly label: string;
}

/** One page's part in the digest. */
export interface LaunchStep {
  readonly type: PageType;
  readonly gpa: number;
  readonly label: string;
  /** SHA-384 of the page, in hex; zeros where firmware does not look into it. */
  readonly content: string;
  /** The digest after this page, in hex. */
  readonly digest: string;
}

/** SHA-384. Web Crypto's by default; a synchronous one is faster. */
export type Sha384 = (bytes: Uint8Array) => Uint8Array | Promise<Uint8Array>;

export const webSha384: Sha384 = async (bytes) =>
  new Uint8Array(await crypto.subtle.digest('SHA-384', unshared(bytes)));

/** Pages of a batch whose contents are hashed at once. */
const BATCH = 64;

export interface LaunchDigestOptions {
  readonly sha384?: Sha384;
  /** A digest to go on from, 48 bytes: of a firmware image that was hashed before. */
  readonly from?: Uint8Array;
}

const OPTIONS: Record<keyof LaunchDigestOptions, true> = { sha384: true, from: true };

/**
 * The digest after `updates`, 48 bytes; `onStep` hears of each page. RangeError: an update that is no whole pages, or has no bytes where it needs
 * them.
 */
export async function launchDigest(
  updates: readonly LaunchUpdate[],
  options: LaunchDigestOptions = {},
  onStep?: (step: LaunchStep) => void,
): Promise<Uint8Array> {
  requireUpdates('updates', updates);
  requireKnownFields('options', options, OPTIONS);
  const { sha384 = webSha384, from } = options;
  requireKind('sha384', sha384, (value) => typeof value === 'function', 'a function');
  if (from !== undefined) requireBytes('from', from, DIGEST_BYTES);
  requireKind('onStep', onStep, (value) => typeof value === 'function', 'a function');
  const info = new Uint8Array(PAGE_INFO_BYTES);
  const view = new DataView(info.buffer);
  view.setUint16(0x60, PAGE_INFO_BYTES, true);
  if (from !== undefined) info.set(from);
  for (const update of updates) {
    const { type, gpa, size, label } = update;
    info[0x62] = PAGE_TYPE[type];
    for (let batch = 0; batch < size; batch += BATCH * PAGE) {
      const end = Math.min(size, batch + BATCH * PAGE);
      const contents = await contentDigests(update, batch, end, sha384);
      for (let at = batch; at < end; at += PAGE) {
        const content = contents[(at - batch) / PAGE];
        info.fill(0, DIGEST_BYTES, 2 * DIGEST_BYTES);
        if (content !== undefined) info.set(content, DIGEST_BYTES);
        view.setBigUint64(0x68, BigInt(gpa + at), true);
        info.set(await sha384(info));
        onStep?.({
          type,
          gpa: gpa + at,
          label,
          content: toHex(info.subarray(DIGEST_BYTES, 2 * DIGEST_BYTES)),
          digest: toHex(info.subarray(0, DIGEST_BYTES)),
        });
      }
    }
  }
  return info.slice(0, DIGEST_BYTES);
}

async function contentDigests(
  { type, bytes }: LaunchUpdate,
  first: number,
  end: number,
  sha384: Sha384,
): Promise<Uint8Array[]> {
  if (type !== 'normal' && type !== 'vmsa') return [];
  const digests: (Uint8Array | Promise<Uint8Array>)[] = [];
  for (let at = first; at < end; at += PAGE) {
    const page = bytes!.subarray(at, at + PAGE);
    digests.push(sha384(type === 'vmsa' ? withoutTsc(page) : page));
  }
  return Promise.all(digests);
}

const withoutTsc = (page: Uint8Array): Uint8Array => page.slice().fill(0, ...VMSA_TSC);

/** RangeError: no array of launch updates; `path` is what messages call it. */
export function requireUpdates(path: string, updates: readonly LaunchUpdate[]): void {
  requireArray(path, updates, 'launch updates');
  for (const [index, update] of updates.entries()) {
    requireKnownFields(`${path}[${index}]`, update, UPDATE);
    requireText(`${path}[${index}].label`, update.label);
    check(update);
  }
}

const UPDATE: Record<keyof LaunchUpdate, true> = {
  type: true,
  gpa: true,
  size: true,
  bytes: true,
  label: true,
};

const isPages = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) % PAGE === 0;
const addressText = (value: unknown): string =>
  typeof value === 'bigint'
    ? `the bigint ${value}`
    : typeof value === 'number'
      ? `${value < 0 ? '-' : ''}0x${Math.abs(value).toString(16)}`
      : textOf(value);

function check({ type, gpa, size, bytes, label }: LaunchUpdate): void {
  requireOneOf(`${label}: type`, type, Object.keys(PAGE_TYPE));
  const bad = (field: string, got: unknown, want: string): never => {
    throw new RangeError(`${label}: ${field}: got ${got}, want ${want}`);
  };
  if (!isPages(size) || size < PAGE) bad('size', addressText(size), 'whole pages of 4096 bytes');
  if (!isPages(gpa) || gpa < 0) bad('address', addressText(gpa), 'a multiple of 4096');
  if (bytes !== undefined) requireBytes(`${label}: bytes`, bytes);
  if ((type === 'normal' || type === 'vmsa') && bytes?.length !== size) {
    bad('bytes', bytes?.length ?? 'none', `${size}`);
  }
  if (type === 'vmsa' && size !== PAGE) bad('size', size, 'one page');
}
