/**
 * Evidence for independent verifiers, made as a guest gets it: a chip of a seeded authority, its secure processor, a measured launch, a
 * guest message; the certificates as the table of an extended request, and as files.
 */
import { writePem } from '../../../src/abi/pem.ts';
import { Authority } from '../../../src/authority/authority.ts';
import type { ChipGeneration, FirmwareVersion } from '../../../src/hardware/chip.ts';
import { CMD, expectSuccess, type Field, type Guest, Machine } from '../../hardware/asp/machine.ts';

export type Key = 'VCEK' | 'VLEK';
/** Of the report's layout. */
export type ReportVersion = 2 | 3 | 5;

export interface Case {
  readonly generation: ChipGeneration;
  readonly key: Key;
  readonly version: ReportVersion;
}

/** Firmware that makes reports of a version. */
const FIRMWARE: Readonly<Record<ReportVersion, FirmwareVersion>> = {
  2: { major: 1, minor: 55, build: 21 },
  3: { major: 1, minor: 57, build: 9 },
  5: { major: 1, minor: 58, build: 3 },
};

/** Each generation and kind of key, with each version of reports that it has: Turin began with 3. */
export const CASES: readonly Case[] = (['milan', 'genoa', 'turin'] as const).flatMap((generation) =>
  (generation === 'turin' ? ([3, 5] as const) : ([2, 3, 5] as const)).flatMap((version) =>
    (['VCEK', 'VLEK'] as const).map((key) => ({ generation, key, version })),
  ),
);

export interface PeerEvidence extends Case {
  readonly product: 'Milan' | 'Genoa' | 'Turin';
  readonly report: Uint8Array;
  readonly reportData: Uint8Array;
  readonly hostData: Uint8Array;
  /** Of the extended request. */
  readonly table: Uint8Array;
  /** DER. */
  readonly leaf: Uint8Array;
  /** ASK or ASVK, DER. */
  readonly intermediate: Uint8Array;
  readonly ark: Uint8Array;
  readonly crl: Uint8Array;
  /** Intermediate and ARK as a key distribution server sends them. */
  readonly chainPem: string;
}

/** The authority of all cases; its chips and roots follow from the seed. */
export const peerAuthority = (): Authority => Authority.seeded(7);

export async function evidenceFor({ generation, key, version }: Case): Promise<PeerEvidence> {
  const authority = peerAuthority();
  const { fuses, signatures, personality } = authority.chip(generation);
  const machine = new Machine({ generation, fuses, signatures, firmware: FIRMWARE[version] }).init();
  try {
    if (key === 'VLEK') loadVlek(machine, (await authority.loadedKey(machine.chip)).wrapped);
    const reportData = Uint8Array.from({ length: 64 }, (_, i) => i ^ version);
    const hostData = Uint8Array.from({ length: 32 }, (_, i) => 0xc0 + i);
    const { status, report } = guestOf(machine, hostData).report({
      data: reportData,
      vmpl: 1,
      keySelect: key === 'VCEK' ? 1 : 2,
    });
    expectSuccess('MSG_REPORT_REQ', status);
    const chain =
      key === 'VCEK'
        ? await authority.certificates(machine.chip)
        : (await authority.loadedKey(machine.chip)).chain;
    const { product } = personality;
    return {
      ...{ generation, key, version, product, report, reportData, hostData, ...chain },
      table: await authority.certificateTable(machine.chip, key),
      crl: await authority.crl(product),
      chainPem: writePem('CERTIFICATE', chain.intermediate) + writePem('CERTIFICATE', chain.ark),
    };
  } finally {
    machine.close();
  }
}

function loadVlek(machine: Machine, wrapped: Uint8Array): void {
  const at = machine.page();
  machine.memory.write(at, wrapped);
  expectSuccess(
    'VLEK_LOAD',
    machine.run(CMD.VLEK_LOAD, [
      [0, 4, 16],
      [8, 8, at],
    ]),
  );
}

/** A launched guest that runs, with `hostData` given to LAUNCH_FINISH. */
function guestOf(machine: Machine, hostData: Uint8Array): Guest {
  const view = new DataView(hostData.buffer);
  const finish = [0, 8, 16, 24].map((at): Field => [32 + at, 8, view.getBigUint64(at, true)]);
  return machine.runGuest({ finish });
}
