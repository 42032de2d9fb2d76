/** KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG (reference facts 1.9): rules, and what a guest's stores leave in the log. */
import type { Hva } from '../../../src/base/address.ts';
import { GuestProgram } from './guest-program.ts';
import { Guest } from './spec-run.ts';
import type { Row, Spec, Subject } from './spec-subject.ts';

const LOG_DIRTY = 1;
/** Slot 1 of 65 pages, at gpa 0x200000: two words of 64 pages. */
const LOGGED = { flags: LOG_DIRTY, guestPhysAddr: 0x20_0000n, memorySize: 0x41000n };

function harvest(subject: Subject, slot = 1): number[] {
  const bitmap = new Int32Array(4);
  subject.vm.getDirtyLog({ slot, bitmap });
  return [...bitmap];
}

/** A guest that stores to gpa 0x201000, loads from 0x202000, and stores to 0x240000; OUT to port 1 after each. */
function writer(subject: Subject): { guest: Guest; ram: Hva } {
  const program = new GuestProgram()
    .store('rdi', 'rax')
    .out()
    .load('rbx', 'rsi')
    .out()
    .set('rdi', 0x24_0000n)
    .store('rdi', 'rax')
    .hlt();
  const guest = new Guest(subject, program, { rdi: 0x20_1000n, rsi: 0x20_2000n, rdx: 1n });
  const ram = subject.memory(65) as Hva;
  subject.set({ ...LOGGED, userspaceAddr: BigInt(ram) });
  return { guest, ram };
}

const get = (title: string, slot: number, want: string, flags = LOG_DIRTY): Row => ({
  title,
  act(subject) {
    subject.set({ ...LOGGED, flags });
    harvest(subject, slot);
  },
  want,
});

const clear = (title: string, firstPage: bigint, numPages: number, want: string): Row => ({
  title,
  act(subject) {
    subject.set(LOGGED);
    subject.vm.clearDirtyLog({ slot: 1, firstPage, numPages, bitmap: new Int32Array(4) });
  },
  want,
});

export const dirtyLogSpec: Spec = {
  title: 'dirty log',
  rows: [
    get('of an absent slot', 2, 'ENOENT'),
    get('of a slot that does not log', 1, 'ENOENT', 0),
    get('of slot 32764', 32764, 'EINVAL'),
    get('of a slot that logs', 1, 'OK'),
    clear('cleared from within a word', 1n, 64, 'EINVAL'),
    clear('cleared beyond the slot', 128n, 64, 'EINVAL'),
    clear('cleared up to within a word', 0n, 63, 'EINVAL'),
    clear('cleared up to the end of the slot, within a word', 64n, 1, 'OK'),
    clear('cleared as a whole', 0n, 65, 'OK'),
    {
      title: 'has the pages that the guest stored to, once',
      act(subject) {
        const { guest } = writer(subject);
        const log = [harvest(subject)];
        for (let step = 0; step < 3; step++) {
          guest.run();
          log.push(harvest(subject));
        }
        return [...log, harvest(subject)];
      },
      want: [
        [0, 0, 0, 0],
        [2, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
      ],
    },
    {
      title: 'does not have what the process stores itself',
      act(subject) {
        const { ram } = writer(subject);
        subject.process.memory.write(ram, Uint8Array.of(1));
        return harvest(subject);
      },
      want: [0, 0, 0, 0],
    },
    {
      title: 'is gone when logging was switched off and on',
      act(subject) {
        const { guest, ram } = writer(subject);
        guest.run();
        subject.set({ ...LOGGED, flags: 0, userspaceAddr: BigInt(ram) });
        subject.set({ ...LOGGED, userspaceAddr: BigInt(ram) });
        return harvest(subject);
      },
      want: [0, 0, 0, 0],
    },
    {
      title: 'with manual protection stays until it is cleared',
      act(subject) {
        subject.vm.enableCap({ cap: 168, args: [1n] });
        const { guest } = writer(subject);
        guest.run();
        const before = [harvest(subject), harvest(subject)];
        subject.vm.clearDirtyLog({ slot: 1, firstPage: 0n, numPages: 64, bitmap: Int32Array.of(2, 0) });
        return [...before, harvest(subject)];
      },
      want: [
        [2, 0, 0, 0],
        [2, 0, 0, 0],
        [0, 0, 0, 0],
      ],
    },
    {
      title: 'begins with every page when it is initially all set',
      act(subject) {
        subject.vm.enableCap({ cap: 168, args: [3n] });
        writer(subject);
        return harvest(subject);
      },
      want: [-1, -1, 1, 0],
    },
  ],
};
