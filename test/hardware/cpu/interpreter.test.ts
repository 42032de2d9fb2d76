import { afterEach, describe, expect, it } from 'vitest';
import { FlatMachine } from '../../oracle/flat-machine.ts';

const CODE = 0x40_0000n;
const DATA = 0x60_0000n;
const [RAX, RCX, RSI, RDI] = [0, 1, 6, 7];
/** LEAVE codes. */
const [BUDGET, EXCEPTION, VMEXIT, STOP] = [0, 2, 3, 5];

const hlt = [0xf4];
const incEax = [0xff, 0xc0];
const movEax = (n: number) => [0xb8, n, 0, 0, 0];
/** jmp rel8 to itself plus `by`. */
const jump = (by: number) => [0xeb, (by - 2) & 0xff];

let machine: FlatMachine;

function start(
  code: readonly number[],
  options: ConstructorParameters<typeof FlatMachine>[0] = {},
): FlatMachine {
  machine = new FlatMachine(options);
  machine.addPage(CODE);
  machine.addPage(CODE + 0x1000n);
  machine.addPage(DATA);
  machine.put(CODE, code);
  machine.rip = CODE;
  return machine;
}

afterEach(() => {
  machine.close();
});

describe('counting', () => {
  it('stops at a system instruction with RIP at it and all before it retired', () => {
    start([...movEax(5), ...incEax, ...hlt]);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.rip).toBe(CODE + 7n);
    expect(machine.register(RAX)).toBe(6n);
    expect(machine.get(0x240)).toBe(2n);
  });

  it('stops an endless loop at the first branch after the budget is used up', () => {
    start([...incEax, ...jump(-2)]);
    expect(machine.run(100)).toBe(BUDGET);
    expect(machine.rip).toBe(CODE);
    expect(machine.register(RAX)).toBe(50n);
    expect(machine.get(0x240)).toBe(100n);
    expect(machine.run(1)).toBe(BUDGET);
    expect(machine.get(0x240)).toBe(102n);
  });

  it('counts a repeated string instruction once', () => {
    // mov ecx, 100; rep stosb; hlt
    start([0xb9, 100, 0, 0, 0, 0xf3, 0xaa, ...hlt]);
    machine.setRegister(RDI, DATA);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.get(0x240)).toBe(2n);
    expect(machine.register(RDI)).toBe(DATA + 100n);
  });

  it('counts a comparison and the jump behind it as two', () => {
    // cmp eax, 0; je +0; hlt
    start([0x83, 0xf8, 0, 0x74, 0, ...hlt]);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.get(0x240)).toBe(2n);
  });
});

describe('faults', () => {
  it('leave registers, flags and RIP as before the instruction', () => {
    // add eax, 1 (carry out of a wrap); push rax with RSP outside any page
    start([0xff, 0xc8, 0x83, 0xc0, 1, 0x50, ...hlt]);
    machine.setRegister(4, 0x1000n);
    expect(machine.run()).toBe(EXCEPTION);
    expect(machine.word(0x230)).toBe(14);
    expect(machine.rip).toBe(CODE + 5n);
    expect(machine.register(4)).toBe(0x1000n);
    expect(machine.flags & 0x8d5n).toBe(0x55n);
    expect(machine.get(0x240)).toBe(2n);
  });

  it('in the middle of a repeated copy keep what is done, and it goes on from there', () => {
    // mov ecx, 32; rep movsb; hlt
    start([0xb9, 32, 0, 0, 0, 0xf3, 0xa4, ...hlt]);
    machine.put(
      CODE + 0x100n,
      Array.from({ length: 32 }, (_, n) => n + 1),
    );
    machine.setRegister(RSI, CODE + 0x100n);
    machine.setRegister(RDI, DATA + 0xff0n);
    expect(machine.run()).toBe(EXCEPTION);
    expect(machine.rip).toBe(CODE + 5n);
    expect(machine.register(RCX)).toBe(16n);
    expect(machine.register(RDI)).toBe(DATA + 0x1000n);
    machine.addPage(DATA + 0x1000n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RCX)).toBe(0n);
    expect(machine.memory.bytes[machine.physical(DATA + 0x100fn)]).toBe(32);
  });

  it('of an instruction that we do not have are #UD, named and counted', () => {
    // vaddps ymm0, ymm0, ymm0
    start([...incEax, 0xc5, 0xfc, 0x58, 0xc0]);
    expect(machine.run()).toBe(EXCEPTION);
    expect(machine.word(0x230)).toBe(6);
    expect(machine.word(0x238)).toBe(0);
    expect(machine.undefinedAt).toEqual([['Vaddps', CODE + 2n]]);
    expect([...machine.interpreter.undefinedInstructions]).toEqual([['Vaddps', 1]]);
  });
});

describe('long string instructions', () => {
  const repMovsb = [0xf3, 0xa4, ...hlt];
  const bytesAt = (linear: bigint, count: number) => {
    const at = machine.physical(linear);
    return [...machine.memory.bytes.subarray(at, at + count)];
  };

  it('copy across pages', () => {
    start(repMovsb);
    machine.addPage(DATA + 0x1000n);
    machine.addPage(DATA + 0x2000n);
    machine.put(
      DATA,
      Array.from({ length: 0x1800 }, (_, n) => n % 251),
    );
    machine.setRegister(RSI, DATA + 5n);
    machine.setRegister(RDI, DATA + 0x1800n);
    machine.setRegister(RCX, 0x700n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RCX)).toBe(0n);
    expect(machine.register(RDI)).toBe(DATA + 0x1f00n);
    expect(bytesAt(DATA + 0x1800n, 0x700)).toEqual(Array.from({ length: 0x700 }, (_, n) => (n + 5) % 251));
    expect(bytesAt(DATA + 0x1f00n, 2)).toEqual([0, 0]);
  });

  it('repeat what they have just written where the destination lies a little above the source', () => {
    start(repMovsb);
    machine.put(DATA, [1, 2, 3]);
    machine.setRegister(RSI, DATA);
    machine.setRegister(RDI, DATA + 3n);
    machine.setRegister(RCX, 7n);
    expect(machine.run()).toBe(VMEXIT);
    expect(bytesAt(DATA, 11)).toEqual([1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 0]);
  });

  it('fill with elements whose bytes differ, and with such that are alike', () => {
    for (const [rax, first] of [
      [0x0102n, [2, 1, 2, 1]],
      [0x0505n, [5, 5, 5, 5]],
    ] as const) {
      start([0x66, 0xf3, 0xab, ...hlt]); // rep stosw
      machine.setRegister(RAX, rax);
      machine.setRegister(RDI, DATA);
      machine.setRegister(RCX, 2047n);
      expect(machine.run()).toBe(VMEXIT);
      expect(bytesAt(DATA, 4)).toEqual(first);
      expect(bytesAt(DATA + 4092n, 4)).toEqual([first[0], first[1], 0, 0]);
      if (first[0] === 2) machine.close();
    }
  });

  it('let others in between, without counting as done', () => {
    start([0xfd, ...repMovsb]); // std: one element at a time
    machine.setRegister(RSI, DATA + 0xfffn);
    machine.setRegister(RDI, DATA + 0xfffn);
    machine.setRegister(RCX, 0x20000n);
    for (let n = 1n; n < 32n; n++) machine.mapPage(DATA - n * 0x1000n, machine.physical(DATA) >>> 12);
    expect(machine.run(5)).toBe(BUDGET);
    expect(machine.rip).toBe(CODE + 1n);
    expect(machine.get(0x240)).toBe(1n);
    expect(machine.register(RCX)).toBe(0x10001n);
    expect(machine.run(5)).toBe(BUDGET);
    expect(machine.run(5)).toBe(VMEXIT);
    expect(machine.register(RCX)).toBe(0n);
    expect(machine.get(0x240)).toBe(2n);
  });
});

describe('one step', () => {
  it('executes exactly one instruction, not the jump fused with it', () => {
    // cmp eax, 0; je +5
    start([0x83, 0xf8, 0, 0x74, 5]);
    expect(machine.step()).toBe(STOP);
    expect(machine.rip).toBe(CODE + 3n);
    expect(machine.get(0x240)).toBe(1n);
    expect(machine.step()).toBe(BUDGET);
    expect(machine.rip).toBe(CODE + 10n);
    expect(machine.get(0x240)).toBe(2n);
  });

  it('follows an indirect jump', () => {
    start([0xff, 0xe0]);
    machine.setRegister(RAX, 0xdead_0000n);
    expect(machine.step()).toBe(BUDGET);
    expect(machine.rip).toBe(0xdead_0000n);
  });
});

describe('addresses', () => {
  const [FS_BASE, GS_BASE] = [0x448, 0x458];
  const put64 = (linear: bigint, value: bigint) => {
    machine.memory.longs[machine.physical(linear) >>> 3] = value;
  };

  it('begin at the base of FS, with base, index and displacement', () => {
    start([0x64, 0x48, 0x8b, 0x44, 0xcf, 0x08, ...hlt]); // mov rax, fs:[rdi + rcx * 8 + 8]
    machine.set(FS_BASE, DATA - 0x1000_0000n);
    machine.setRegister(RDI, 0x1000_0000n);
    machine.setRegister(RCX, 3n);
    put64(DATA + 32n, 0x1122_3344_5566_7788n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(0x1122_3344_5566_7788n);
  });

  it('begin at the base of GS where there is no register at all', () => {
    start([0x65, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0, ...hlt]); // mov rax, gs:[16]
    machine.set(GS_BASE, DATA);
    put64(DATA + 16n, 77n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(77n);
  });

  it('of LEA know no segment', () => {
    start([0x64, 0x48, 0x8d, 0x47, 1, ...hlt]); // lea rax, fs:[rdi + 1]
    machine.set(FS_BASE, DATA);
    machine.setRegister(RDI, 6n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(7n);
  });

  it('of 32 bits wrap before the segment base is added', () => {
    start([0x64, 0x67, 0x48, 0x8b, 0x47, 0x10, ...hlt]); // mov rax, fs:[edi + 16]
    machine.set(FS_BASE, DATA);
    machine.setRegister(RDI, 0xabcd_ffff_fff8n);
    put64(DATA + 8n, 99n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(99n);
  });

  it('of a string source begin at its segment, those of the destination do not', () => {
    start([0x64, 0x48, 0xa5, ...hlt]); // movsq from fs:[rsi]
    machine.set(FS_BASE, DATA);
    put64(DATA + 0x20n, 5n);
    machine.setRegister(RSI, 0x20n);
    machine.setRegister(RDI, DATA + 0x40n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.memory.longs[machine.physical(DATA + 0x40n) >>> 3]).toBe(5n);
  });

  it('of a pop to memory count with the stack pointer as it is afterwards', () => {
    start([0x8f, 0x44, 0x24, 0x08, ...hlt]); // pop qword [rsp + 8]
    machine.setRegister(4, DATA);
    put64(DATA, 42n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.memory.longs[machine.physical(DATA + 16n) >>> 3]).toBe(42n);
    expect(machine.register(4)).toBe(DATA + 8n);
  });
});

describe('stores into code', () => {
  it('change the very next instruction', () => {
    // mov byte [rdi], 7; mov eax, 1; hlt
    start([0xc6, 0x07, 7, ...movEax(1), ...hlt]);
    machine.setRegister(RDI, CODE + 4n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(7n);
  });

  it('change an instruction that has run before, in another page', () => {
    // L: call page 2; mov byte [rdi], 9; dec ecx; jnz L; hlt — page 2: mov eax, 1; ret
    const rel = 0x1000 - 5;
    start([0xe8, rel & 255, rel >> 8, 0, 0, 0xc6, 0x07, 9, 0xff, 0xc9, 0x75, 0xf4, ...hlt]);
    machine.put(CODE + 0x1000n, [...movEax(1), 0xc3]);
    machine.setRegister(4, DATA + 0x800n);
    machine.setRegister(RCX, 2n);
    machine.setRegister(RDI, CODE + 0x1001n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(9n);
  });

  it('beside code, in the same page, do not throw it away', () => {
    // mov [rdi], eax; inc eax; cmp eax, 50; jne start; hlt
    start([0x89, 0x07, ...incEax, 0x83, 0xf8, 50, 0x75, 0xf7, ...hlt]);
    machine.setRegister(RDI, CODE + 0x800n);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.memory.bytes[machine.physical(CODE + 0x800n)]).toBe(49);
    expect(machine.register(RAX)).toBe(50n);
  });

  it('change an instruction that straddles two pages, on either side', () => {
    for (const side of [0xffen, 0x1001n]) {
      start([0xc6, 0x07, 0x22, 0xff, 0xc9, 0x0f, 0x84, 0xf3, 0x0f, 0, 0]);
      // At 0xffd: mov eax, 0x01010101 (three bytes here, two there); then jmp to the start
      machine.put(CODE, [0xe9, 0xf8, 0x0f, 0, 0]);
      machine.put(CODE + 0xffdn, [
        0xb8,
        1,
        1,
        1,
        1,
        0xc6,
        0x07,
        0x22,
        0xff,
        0xc9,
        0x75,
        0xf2 - 0x100 + 0x100,
        ...hlt,
      ]);
      machine.put(CODE + 0x1002n, [0xc6, 0x07, 0x22, 0xff, 0xc9, 0x75, 0xf4, ...hlt]);
      machine.setRegister(RCX, 2n);
      machine.setRegister(RDI, CODE + side);
      expect(machine.run()).toBe(VMEXIT);
      expect(machine.register(RAX)).toBe(side === 0xffen ? 0x01010122n : 0x22010101n);
      if (side === 0xffen) machine.close();
    }
  });
});

describe('pages of code', () => {
  it('are decoded once for a frame, wherever it is mapped', () => {
    start([0x48, 0x8d, 0x05, 0, 0, 0, 0, ...hlt]); // lea rax, [rip]
    expect(machine.run()).toBe(VMEXIT);
    machine.mapPage(0x70_0000n, machine.physical(CODE) >>> 12);
    machine.rip = 0x70_0000n;
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(0x70_0007n);
  });

  it('whose second half is mapped elsewhere make a straddling instruction new', () => {
    start([0xe9, 0xf8, 0x0f, 0, 0]);
    machine.put(CODE + 0xffdn, [0xb8, 1, 1]);
    machine.put(CODE + 0x1000n, [1, 1, ...hlt]);
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(0x0101_0101n);
    machine.addPage(CODE + 0x1000n);
    machine.put(CODE + 0x1000n, [2, 2, ...hlt]);
    machine.rip = CODE;
    expect(machine.run()).toBe(VMEXIT);
    expect(machine.register(RAX)).toBe(0x0202_0101n);
  });

  it('that are missing behind a straddling instruction fault before it', () => {
    start([0xe9, 0xfa, 0x1f, 0, 0]);
    machine.put(CODE + 0x1fffn, [0xb8]);
    expect(machine.run()).toBe(EXCEPTION);
    expect(machine.rip).toBe(CODE + 0x1fffn);
  });

  it('are all thrown away when there is no room for more, and the run goes on', () => {
    // Each page: jmp to the next one; the last: hlt. Room for few page maps.
    start([], { codeBytes: 256 * 1024, bytes: 32 << 20 });
    for (let n = 0n; n < 100n; n++) {
      if (n > 1n) machine.addPage(CODE + n * 0x1000n);
      machine.put(CODE + n * 0x1000n, n === 99n ? hlt : [...incEax, 0xe9, 0xf9, 0x0f, 0, 0]);
    }
    for (let round = 1n; round <= 3n; round++) {
      machine.rip = CODE;
      expect(machine.run()).toBe(VMEXIT);
      expect(machine.register(RAX)).toBe(99n * round);
    }
  });

  it('leave no frame behind when the interpreter is closed', () => {
    start([...incEax, ...hlt]);
    const before = machine.memory.freeFrames;
    expect(machine.run()).toBe(VMEXIT);
    machine.interpreter.close();
    // 16 of records and two page maps of 4 it had from the beginning.
    expect(machine.memory.freeFrames).toBe(before + 24);
  });
});
