/** No host-side read shows a guest's secrets or keys, whatever it and its host did before; and a leak in any kind of place is found. HISTORIES makes it longer, SECRECY_SEED repeats it. */
import { describe, expect, it, vi } from 'vitest';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { GuestContext } from '../../../src/hardware/asp/guest-context.ts';
import { p384PrivateKey } from '../../../src/hardware/chip/key-derivation.ts';
import { Chip } from '../../../src/hardware/chip.ts';
import { MemoryEncryption } from '../../../src/hardware/memory/memory-encryption.ts';
import { SecretMachine } from './secrecy.ts';
import type { Place } from './secrecy-search.ts';
import { SecretGuest } from './secret-guest.ts';

const SEED = Number(process.env['SECRECY_SEED'] ?? Date.now() % 0x7fff_ffff);
const HISTORIES = Number(process.env['HISTORIES'] ?? 1000);
/** Histories that a machine lives through: enough for each kind of event to happen. */
const LIVES = 50;
/** Of a busy machine, in ms: otherwise it takes two seconds. */
const PATIENCE = 120_000;

const RUN = `secrecy (SECRECY_SEED=${SEED}, ${HISTORIES} histories)`;
// A run that is green says so too.
console.info(RUN);

describe(RUN, () => {
  for (let first = 0; first < HISTORIES; first += LIVES)
    it(
      `holds after each of histories ${first} to ${first + LIVES - 1} of a scripted guest`,
      () => {
        const machine = new SecretMachine();
        for (let i = first; i < first + LIVES; i++) {
          machine.live(SEED + i);
          expect(machine.search.leaks(), `history ${i}`).toEqual([]);
        }
        const missing = [...machine.happened].filter(([, times]) => times === 0);
        expect(missing, 'kinds that never happened').toEqual([]);
        machine.close();
      },
      PATIENCE,
    );

  for (let first = 0; first < HISTORIES / 4; first += LIVES)
    it(
      `holds after each of histories ${first} to ${first + LIVES - 1} of a guest whose code runs`,
      () => {
        const guest = new SecretGuest();
        for (let i = first; i < first + LIVES; i++) {
          guest.live(SEED + i);
          expect(guest.search.leaks(), `history ${i}`).toEqual([]);
        }
        expect(guest.isInVmsa).toBe(true);
        const missing = [...guest.happened].filter(([, times]) => times === 0);
        expect(missing, 'deeds that never happened').toEqual([]);
        guest.close();
      },
      PATIENCE,
    );

  // Where a leak is seen: by its own path, and where that is memory, by the others that lead there.
  const PLANTED: readonly (readonly [Place, readonly Place[]])[] = [
    ['process memory', ['process memory', 'frames']],
    ['kvm_run', ['kvm_run', 'frames']],
    ['frames', ['frames']],
    ['DMA', ['DMA']],
    ['guest_memfd', ['guest_memfd']],
    ['firmware buffers', ['firmware buffers', 'DMA']],
    ['answers to ioctls', ['answers to ioctls']],
    ['traces', ['traces']],
    ['reports', ['reports']],
    ['logs', ['logs']],
  ];
  const OF_FIRMWARE = [
    ...['context key', 'OEK', 'VMPCK 0', 'VMPCK 1', 'VMPCK 2', 'VMPCK 3', 'VMRK', 'report ID', 'memory key'],
    ...['fuses', 'VCEK seed', 'VCEK', 'VLEK hash sticks', 'VLEK wrapping key', 'VLEK'],
  ];
  const OF_THE_SCRIPT = ['secret', 'REPORT_DATA', 'signature of a report', 'derived key'];
  const OF_RUNNING_CODE = ['RBX', 'RBP and XMM3'];
  for (const [place, seen] of PLANTED)
    it.each([
      ['a scripted guest', () => new SecretMachine(), [...OF_FIRMWARE, ...OF_THE_SCRIPT]],
      ['a guest whose code runs', () => new SecretGuest(), [...OF_FIRMWARE, ...OF_RUNNING_CODE]],
    ] as const)(`is seen to fail when a secret of any kind is planted: ${place}, %s`, (_, make, kinds) => {
      const subject = make();
      const { search } = subject;
      const known = () =>
        new Map(search.secrets.map((secret) => [secret.name.replace(/ at 0x.*/, ''), secret]));
      for (let i = 0; i < LIVES && known().size < kinds.length; i++) {
        subject.live(SEED + i);
        expect(search.leaks()).toEqual([]);
      }
      const ofKind = known();
      expect([...ofKind.keys()].sort()).toEqual([...kinds].sort());
      for (const { name, bytes, reported } of ofKind.values()) {
        search.plant(place, bytes.subarray(0, 8));
        const expected = place === 'reports' && reported ? [] : seen;
        expect(search.leaks()).toEqual(expected.map((place) => ({ secret: name, place })));
      }
      subject.close();
    });

  it('is seen to fail by any piece of any key that firmware or the chip has', () => {
    const contexts = vi.spyOn(GuestContext.prototype, 'generateSecrets');
    const memoryKeys: Uint8Array[] = [];
    const { addKey } = MemoryEncryption.prototype;
    vi.spyOn(MemoryEncryption.prototype, 'addKey').mockImplementation(function (
      this: MemoryEncryption,
      key,
    ): number {
      memoryKeys.push(key.slice());
      return addKey.call(this, key);
    });
    const wrappings = vi.spyOn(Chip.prototype, 'vlekWrappingKey');
    const machine = new SecretMachine();
    const wrappingKeys = wrappings.mock.results.map(({ value }) => value as Uint8Array);
    const sticks = new Uint8Array(384);
    seededEntropy(9).fill(sticks);
    const [context] = contexts.mock.contexts as GuestContext[];
    vi.restoreAllMocks();
    const { search, snp } = machine;
    const { chip } = snp;
    const vcekSeed = chip.vcekSeed(chip.reportedTcb);
    const keys: readonly (readonly [string, Uint8Array])[] = [
      ['OEK', context!.oek],
      ...context!.vmpcks.map((key, i) => [`VMPCK ${i}`, key] as const),
      ['VMRK', context!.vmrk],
      ['context key', memoryKeys[0]!],
      ['memory key', memoryKeys[1]!],
      ['fuses', chip.fuses.secret],
      ['VCEK seed', vcekSeed],
      ['VCEK', p384PrivateKey(vcekSeed, 'VCEK')],
      ['VLEK hash sticks', sticks],
      ['VLEK wrapping key', wrappingKeys[0]!],
      ['VLEK', p384PrivateKey(sticks.subarray(336), 'VLEK')],
    ];
    expect(search.leaks()).toEqual([]);
    for (const [name, key] of keys)
      for (let at = 0; at < key.length; at += 8) {
        search.plant('traces', key.subarray(at, at + 8));
        search.plant('reports', key.subarray(at, at + 8));
        expect(search.leaks(), `byte ${at}`).toEqual([
          { secret: name, place: 'traces' },
          { secret: name, place: 'reports' },
        ]);
      }
    machine.close();
  });
});
