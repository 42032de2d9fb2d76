/**
 * The secrets of a machine's secure processor, for tests that look for them: every draw of its entropy, and what the chip derives its endorsement keys from. Firmware draws the key of
 * context pages, then for each guest OEK, VMPCKs, VMRK, report ID and the guest's memory key.
 */
import { type Entropy, seededEntropy } from '../../../src/base/entropy.ts';
import { p384PrivateKey } from '../../../src/hardware/chip/key-derivation.ts';
import { vlekSeed } from '../../../src/hardware/chip/vlek.ts';
import { type Chip, VLEK_SIZE, wrapVlek } from '../../../src/hardware/chip.ts';
import type { SnpVm } from './snp-bench.ts';

const OF_A_GUEST = ['OEK', 'VMPCK 0', 'VMPCK 1', 'VMPCK 2', 'VMPCK 3', 'VMRK', 'report ID', 'memory key'];
const VLEK_LOAD = 12;

export interface RecordedKey {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export class RecordedKeys implements Entropy {
  readonly #entropy: Entropy;
  #drawn: RecordedKey[] = [];
  #draws = 0;

  constructor(seed: number) {
    this.#entropy = seededEntropy(seed);
  }

  fill(bytes: Uint8Array): void {
    this.#entropy.fill(bytes);
    const name = this.#draws === 0 ? 'context key' : OF_A_GUEST[(this.#draws - 1) % OF_A_GUEST.length]!;
    this.#draws++;
    this.#drawn.push({ name, bytes: bytes.slice() });
  }

  below(limit: number): number {
    return this.#entropy.below(limit);
  }

  /** What was drawn since the last call. */
  take(): readonly RecordedKey[] {
    const drawn = this.#drawn;
    this.#drawn = [];
    return drawn;
  }
}

/** The fuses' secret, and the VCEK of the TCB that runs: its seed and the private key. */
export function keysOfChip(chip: Chip): readonly RecordedKey[] {
  const seed = chip.vcekSeed(chip.reportedTcb);
  return [
    { name: 'fuses', bytes: chip.fuses.secret },
    { name: 'VCEK seed', bytes: seed },
    { name: 'VCEK', bytes: p384PrivateKey(seed, 'VCEK') },
  ];
}

/** Gives the machine a VLEK. Its hash sticks and its private key. */
export function loadVlek({ chip, process, sevFd }: SnpVm): readonly RecordedKey[] {
  const sticks = new Uint8Array(VLEK_SIZE);
  seededEntropy(9).fill(sticks);
  const wrappingKey = chip.vlekWrappingKey(chip.reportedTcb);
  const blob = wrapVlek({ sticks, tcb: chip.reportedTcb, wrappingKey, iv: new Uint8Array(12) });
  const data = new Uint8Array(16);
  data[0] = 16;
  data[8] = 1;
  process.sevIssueCommand(sevFd, { cmd: VLEK_LOAD, data, blob });
  return [
    { name: 'VLEK hash sticks', bytes: sticks },
    { name: 'VLEK wrapping key', bytes: wrappingKey },
    { name: 'VLEK', bytes: p384PrivateKey(vlekSeed(sticks), 'VLEK') },
  ];
}
