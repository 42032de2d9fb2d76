/** Reading an ATTESTATION_REPORT (AMD 56860): its fields as they are, with nothing judged but its size and version. */
import { PRODUCTS, type Product, productOfCpuid } from '../abi/amd-certificate.ts';
import {
  attestationReport,
  KEY_INFO,
  REPORT_SIGNED_SIZE,
  REPORT_SIZE,
  SIGNING_KEY,
} from '../abi/attestation-report.ts';
import { fromHex } from '../base/hex.ts';
import { requireBytes, requireText } from '../base/option-checks.ts';
import { isZero } from './bytes.ts';
import { EvidenceError } from './evidence-error.ts';

/** Versions that are understood. Version 4 has version 3's layout. */
export const REPORT_VERSIONS = [2, 3, 4, 5] as const;

type Fields = ReturnType<typeof attestationReport.decode>;

export interface AttestationReport extends Fields {
  readonly bytes: Uint8Array;
  /** What the signature covers. */
  readonly signedBytes: Uint8Array;
  /** ECDSA signature, 96 bytes: R and S big-endian (IEEE P1363); undefined if a number does not fit P-384. */
  readonly p1363: Uint8Array | undefined;
  readonly signingKey: 'VCEK' | 'VLEK' | 'none' | `reserved ${number}`;
  readonly isAuthorKeyEnabled: boolean;
  readonly isChipKeyMasked: boolean;
  /** By CPUID from version 3 on, else by the form of CHIP_ID where that tells; undefined: not told. */
  readonly product: Product | undefined;
  /** True if CHIP_ID is masked: all zero. */
  readonly isChipIdMasked: boolean;
  /** Offset of a byte that must be zero and is not. */
  readonly reservedByteSet: number | undefined;
}

/**
 * Takes REPORT_SIZE bytes, or a whole MSG_REPORT_RSP (status, size, report) as guests get it; messages call it `name`. Throws EvidenceError.
 */
export function parseReport(input: Uint8Array, name = 'report'): AttestationReport {
  requireBytes(name, input);
  const bytes = unwrap(input, name);
  const fields = attestationReport.decode(bytes);
  const { version } = fields;
  if (!(REPORT_VERSIONS as readonly number[]).includes(version)) {
    throw new EvidenceError(`${name}.version: got ${version}, want ${REPORT_VERSIONS.join(', ')}`);
  }
  const key = (fields.keyInfo >> KEY_INFO.SIGNING_KEY_SHIFT) & KEY_INFO.SIGNING_KEY_MASK;
  const isChipIdMasked = isZero(fields.chipId);
  return {
    ...fields,
    bytes,
    signedBytes: bytes.subarray(0, REPORT_SIGNED_SIZE),
    p1363: p1363Of(fields.signature),
    signingKey: signingKeyName(key),
    isAuthorKeyEnabled: (fields.keyInfo & KEY_INFO.AUTHOR_KEY_EN) !== 0,
    isChipKeyMasked: (fields.keyInfo & KEY_INFO.MASK_CHIP_KEY) !== 0,
    product:
      version >= 3
        ? productOfCpuid(fields.cpuidFamily, fields.cpuidModel)
        : !isChipIdMasked && isZero(fields.chipId.subarray(8))
          ? PRODUCTS[2]
          : undefined,
    isChipIdMasked,
    reservedByteSet: firstReservedByteSet(version, bytes),
  };
}

/** RangeError: `report` is not what `parseReport` returns. */
export function requireReport(report: unknown): asserts report is AttestationReport {
  const { bytes, policy, signingKey } = (report ?? {}) as Partial<AttestationReport>;
  if (!(bytes instanceof Uint8Array) || typeof policy !== 'bigint' || typeof signingKey !== 'string')
    throw new RangeError('report: got something else, want what parseReport returns');
}

function signingKeyName(key: number): AttestationReport['signingKey'] {
  if (key === SIGNING_KEY.VCEK) return 'VCEK';
  if (key === SIGNING_KEY.VLEK) return 'VLEK';
  return key === SIGNING_KEY.NONE ? 'none' : `reserved ${key}`;
}

/** The report inside a response of the firmware: u32 status, u32 size, 24 reserved bytes, report. */
function unwrap(input: Uint8Array, name: string): Uint8Array {
  if (input.length === REPORT_SIZE) return input;
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  const isResponse =
    input.length >= 0x20 + REPORT_SIZE &&
    view.getUint32(0, true) === 0 &&
    view.getUint32(4, true) === REPORT_SIZE;
  if (isResponse) return input.subarray(0x20, 0x20 + REPORT_SIZE);
  throw new EvidenceError(`${name}: got ${input.length} bytes, want ${REPORT_SIZE}`);
}

const NUMBER = 72;
const SIGNIFICANT = 48;

function p1363Of(signature: Uint8Array): Uint8Array | undefined {
  const p1363 = new Uint8Array(2 * SIGNIFICANT);
  for (let index = 0; index < 2; index++) {
    for (let i = 0; i < NUMBER; i++) {
      const byte = signature[NUMBER * index + i]!;
      if (i < SIGNIFICANT) p1363[SIGNIFICANT * (index + 1) - 1 - i] = byte;
      else if (byte !== 0) return undefined;
    }
  }
  return p1363;
}

/** [first, after last) of what a version reserves; the signature's tail is among it. */
const RESERVED_SINCE_5: readonly (readonly [number, number])[] = [
  [0x04c, 0x050],
  [0x18b, 0x1a0],
  [0x1eb, 0x1ec],
  [0x1ef, 0x1f0],
  [0x208, 0x2a0],
  [0x330, 0x4a0],
];
const RESERVED_SINCE_3 = [...RESERVED_SINCE_5, [0x1f8, 0x208] as const];
const RESERVED_SINCE_2 = [...RESERVED_SINCE_3, [0x188, 0x18b] as const];

function firstReservedByteSet(version: number, bytes: Uint8Array): number | undefined {
  const ranges = version < 3 ? RESERVED_SINCE_2 : version < 5 ? RESERVED_SINCE_3 : RESERVED_SINCE_5;
  for (const [first, end] of ranges) {
    for (let at = first; at < end; at++) if (bytes[at] !== 0) return at;
  }
  return undefined;
}

/** A report in hex, with or without white space, as files often hold it; undefined if that is not what `text` is. */
export function reportFromHex(text: string): Uint8Array | undefined {
  requireText('text', text);
  const hex = text.replace(/\s+/g, '');
  if (hex.length !== 2 * REPORT_SIZE || !/^[0-9a-f]+$/i.test(hex)) return undefined;
  return fromHex(hex);
}
