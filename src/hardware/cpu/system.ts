/**
 * The system operations of a core by the codes of record.ts. What this core does not have is #UD and named in the trace; what it should
 * have and has not yet throws NotImplementedError by name.
 */
import { SAVE } from '../../abi/vmcb.ts';
import { VECTOR } from '../../abi/x86.ts';
import { NotImplementedError } from '../../base/errors.ts';
import type { Exceptions } from './exceptions.ts';
import type { MsrFile } from './msr.ts';
import type { CoreParts } from './parts.ts';
import { SYSTEM, type SystemName } from './record.ts';
import type { Segmentation } from './segments.ts';
import * as control from './system/control-registers.ts';
import * as tables from './system/descriptor-tables.ts';
import * as extended from './system/extended-state.ts';
import * as far from './system/far-transfers.ts';
import { floatInstruction } from './system/float.ts';
import { SystemInstruction, type SystemOperation } from './system/instruction.ts';
import { narrowBranch } from './system/narrow-branches.ts';
import * as ports from './system/ports.ts';
import * as processor from './system/processor.ts';
import * as secure from './system/secure-paging.ts';
import * as transfers from './system/transfers.ts';
import * as vector from './system/vector-state.ts';
import * as virtualization from './system/virtualization.ts';
import * as x87 from './system/x87-control.ts';

export class SystemOperations {
  readonly #instruction: SystemInstruction;
  readonly #operations: SystemOperation[] = [];

  constructor(parts: CoreParts, segments: Segmentation, exceptions: Exceptions, msrs: MsrFile) {
    this.#instruction = new SystemInstruction(parts, segments, exceptions);
    const rows = operations(msrs);
    for (const [name, code] of Object.entries(SYSTEM) as [SystemName, number][]) {
      this.#operations[code] = rows[name] ?? missing(name);
    }
  }

  /** Does what the `system` record says: 0 to go on behind it, or a LEAVE code. */
  execute(record: number): number {
    const instruction = this.#instruction;
    return this.#operations[instruction.begin(record)]!(instruction);
  }
}

const undefinedOpcode: SystemOperation = (i) => i.undefined();

/** An instruction that the chip's CPUID does not show: #UD, named in the trace. */
const absent =
  (name: string): SystemOperation =>
  (i) => {
    const { trace, id, registers } = i.parts;
    if (trace.on) {
      const rip = `0x${registers.rip.toString(16)}`;
      trace.emit({ kind: 'core', who: 'core', what: 'undefined', why: name, vcpu: id, rip });
    }
    return i.undefined();
  };

const missing =
  (name: string): SystemOperation =>
  () => {
    throw new NotImplementedError(`the instruction ${name}`);
  };

function operations(msrs: MsrFile): Partial<Record<SystemName, SystemOperation>> {
  return {
    UNDEFINED: undefinedOpcode,
    UD: undefinedOpcode,
    TOO_LONG: (i) => i.generalProtection(),
    NM: (i) => i.parts.events.raise(VECTOR.NM),
    CPUID: processor.cpuid,
    RDMSR: processor.readMsr(msrs),
    WRMSR: processor.writeMsr(msrs),
    RDTSC: processor.readTimeStamp(msrs),
    RDTSCP: processor.readTimeStampAndAux(msrs),
    RDPMC: processor.readPerformanceCounter,
    IN: ports.input,
    OUT: ports.output,
    INS: ports.inputString,
    OUTS: ports.outputString,
    HLT: processor.halt,
    VMCALL: undefinedOpcode,
    VMMCALL: virtualization.hypercall,
    MOV_TO_CR: control.moveToControl,
    MOV_FROM_CR: control.moveFromControl,
    MOV_TO_DR: control.moveToDebug,
    MOV_FROM_DR: control.moveFromDebug,
    CLTS: control.clearTaskSwitched,
    LMSW: control.loadMachineStatus,
    SMSW: control.storeMachineStatus,
    LGDT: tables.loadGdt,
    LIDT: tables.loadIdt,
    SGDT: tables.storeGdt,
    SIDT: tables.storeIdt,
    LLDT: tables.loadLdt,
    LTR: tables.loadTask,
    SLDT: tables.storeLdt,
    STR: tables.storeTask,
    MOV_TO_SEGMENT: tables.moveToSegment,
    MOV_FROM_SEGMENT: tables.moveFromSegment,
    INVLPG: processor.invalidatePage,
    INVLPGA: virtualization.invalidatePageOfAsid,
    INVD: processor.invalidateCaches,
    WBINVD: processor.writeBackCaches,
    IRET: far.interruptReturn,
    INT: transfers.softwareInterrupt,
    INT3: transfers.breakpoint,
    INTO: transfers.overflow,
    INT1: transfers.debugTrap,
    SYSCALL: transfers.systemCall,
    SYSRET: transfers.systemReturn,
    SYSENTER: transfers.legacyCall,
    SYSEXIT: transfers.legacyCall,
    SWAPGS: transfers.swapGs,
    XGETBV: extended.getExtendedControl,
    XSETBV: extended.setExtendedControl,
    CLI: transfers.clearInterrupts,
    STI: transfers.setInterrupts,
    CLAC: transfers.clearAlignmentCheck,
    STAC: transfers.setAlignmentCheck,
    POPF: transfers.popFlags,
    RETF: far.farReturn,
    RDFSBASE: transfers.readBase(SAVE.FS),
    RDGSBASE: transfers.readBase(SAVE.GS),
    WRFSBASE: transfers.writeBase(SAVE.FS),
    WRGSBASE: transfers.writeBase(SAVE.GS),
    RSM: virtualization.resumeFromManagement,
    VMRUN: virtualization.vmrun,
    VMLOAD: virtualization.vmload,
    VMSAVE: virtualization.vmsave,
    STGI: virtualization.setGlobalInterrupts,
    CLGI: virtualization.clearGlobalInterrupts,
    SKINIT: virtualization.secureInit,
    LAR: tables.loadAccessRights,
    LSL: tables.loadSegmentLimit,
    VERR: tables.verifyRead,
    VERW: tables.verifyWrite,
    JMPF: far.farJump,
    CALLF: far.farCall,
    LOAD_FAR_POINTER: tables.loadFarPointer,
    NEAR16: narrowBranch,
    PAUSE: processor.pause,
    MONITOR: processor.monitor,
    MWAIT: processor.wait,
    CLFLUSH: processor.flushLine,
    FXSAVE: vector.saveVectorState,
    FXRSTOR: vector.restoreVectorState,
    LDMXCSR: vector.loadMxcsr,
    STMXCSR: vector.storeMxcsr,
    FLOAT: floatInstruction,
    INVPCID: absent('INVPCID'),
    XSAVE: extended.saveExtendedState,
    XSAVEOPT: extended.saveExtendedStateOptimised,
    XSAVEC: extended.saveExtendedStateCompacted,
    XRSTOR: extended.restoreExtendedState,
    FNINIT: x87.initialize,
    FNCLEX: x87.clearExceptions,
    FNSTCW: x87.storeControl,
    FLDCW: x87.loadControl,
    FNSTSW: x87.storeStatus,
    FNSTSW_AX: x87.statusToRegister,
    WAIT: x87.wait,
    X87: x87.other,
    RDRAND: processor.randomNumber,
    RDSEED: processor.randomNumber,
    RDPID: processor.readProcessorId(msrs),
    PVALIDATE: secure.pageValidate,
    RMPADJUST: secure.adjustPermissions,
    RMPQUERY: secure.queryPermissions,
    VMGEXIT: virtualization.ghcbExit,
  };
}
