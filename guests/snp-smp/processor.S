# Where a processor starts that the boot processor made a VMSA for: on its own stack, GS base at its struct vcpu.

        .text
        .globl  processor_entry
processor_entry:
        cld
        xorl    %ebp, %ebp
        call    processor_main
        jmp     park

        .section .note.GNU-stack, "", @progbits
